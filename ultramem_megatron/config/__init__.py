"""Settings of a run: frozen dataclasses, one file a section. No torch here."""
