"""How patch values are gathered: the global buffer, proxy anchors, dynamic normalisation, dense and streaming forms."""
