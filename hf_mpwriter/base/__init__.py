"""Values without behaviour: settings, errors, verdicts, names and files. Used by every folder above."""
