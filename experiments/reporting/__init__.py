"""What a report is made of: runs, methods compared, figures, and the page."""
