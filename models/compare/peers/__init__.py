"""Other people's systems, which all implement the protocol `Peer`."""
