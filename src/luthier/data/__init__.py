"""From files to rows: reading, formats, checks, templates, splits, order."""
