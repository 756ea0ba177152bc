"""Joins configurations, data, networks, training and evaluation into commands."""
