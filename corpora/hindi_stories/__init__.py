"""Hindi mini-stories and minimal pairs from a grammar of our own; `make stories` writes what the package ships."""
