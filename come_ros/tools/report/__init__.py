"""What commands report: tables, pictures, comparisons, result folders."""
