"""Files from elsewhere: fetched, verified, read row by row."""
