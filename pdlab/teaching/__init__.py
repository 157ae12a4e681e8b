"""What the notebooks, the app and the reports show."""
