"""The machine that Moiety itself runs on: what can be read of it, and measured of its speed."""
