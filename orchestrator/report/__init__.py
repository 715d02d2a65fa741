"""The report: one offline page with its figures, tables and headings."""
