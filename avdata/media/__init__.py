"""Decode containers, audio, video and images."""
