"""Energy, attention masks, comparisons and run reports."""
