#!lua
-- Does nothing; but as it might write, the server refuses it when it takes no writes. KEYS: any of its.
return 1
