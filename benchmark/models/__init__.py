"""The networks, one file for each family. torch is imported only when a network is built."""
