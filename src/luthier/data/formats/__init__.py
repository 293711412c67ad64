"""One file for each way in which a row of data can be written."""
