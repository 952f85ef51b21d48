"""What people and programs mark in images: points and areas with a class, in every layout that is read."""
