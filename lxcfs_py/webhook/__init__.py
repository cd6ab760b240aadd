"""The admission webhook: it adds the files to pods as the API server takes them in."""
