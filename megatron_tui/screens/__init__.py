"""The four screens of the workbench and the dialogs over them; a screen composes and routes."""
