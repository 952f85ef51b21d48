"""Cross-validation: every fold trained and tested, and one report beside the published numbers."""
