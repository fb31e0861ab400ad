"""Persian text, digits, and every sentence a person may read, in fa and en. Standard library only."""
