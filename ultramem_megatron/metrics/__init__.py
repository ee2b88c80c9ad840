"""What a metric is, and the list of all of them. The lowest layer: anything may record. No torch here."""
