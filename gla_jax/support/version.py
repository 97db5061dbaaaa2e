"""The one place of the version; the build reads it without importing the package."""

VERSION = "0.1.0"
