"""Many slides: the list, the processes or the cluster that segment them, the summary and the report."""
