"""The method's attention over a global buffer: anchors, dynamic normalisation, and three forms of one protocol."""
