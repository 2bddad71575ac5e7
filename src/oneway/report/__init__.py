"""Records to sentences, tables, pictures and pages; nothing here computes a metric."""
