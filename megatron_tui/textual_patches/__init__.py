"""Every private part of Textual that is relied on, with a test each."""
