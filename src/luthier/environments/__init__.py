"""What answers a model between its turns while it learns: one file each; the file name is the `type`."""
