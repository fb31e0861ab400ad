"""What is approved (catalog), what is held (registry), what is on its way (transfers), and who uses what (holds)."""
