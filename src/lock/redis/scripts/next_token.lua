-- A token that is newer than the holder's, for a forced release to fence it out with.
return next_token()
