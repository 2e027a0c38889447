"""The screens in the documentation: recorded from real workers, and drawn from the record."""
