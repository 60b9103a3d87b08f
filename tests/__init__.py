"""Tests; the folders mirror `src/moiety`."""
