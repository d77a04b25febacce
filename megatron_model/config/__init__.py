"""Every setting of a run, declared once; the presets; what can change while a run trains."""
