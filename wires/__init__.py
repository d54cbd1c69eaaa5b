"""Events -> client, one file per format: decode the request, encode the events. A wire knows no provider."""
