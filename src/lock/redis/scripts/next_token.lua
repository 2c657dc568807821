-- Returns a token higher than the holder's, with which a forced release fences the holder out.
return next_token()
