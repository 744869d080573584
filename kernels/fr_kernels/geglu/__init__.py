"""The gated activation of the UNet's feed-forward layers."""
