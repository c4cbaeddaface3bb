"""The launchers: `python -m launch.NAME`, or the installed commands `internvl-NAME`."""
