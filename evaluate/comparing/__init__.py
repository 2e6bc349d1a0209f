"""Rows beside each other: columns, tables, paired comparisons, published figures."""
