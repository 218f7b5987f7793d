environment "production"
workers 2
# A thread stays with a client for 0.2 s after each answer: fewer than there are clients starve them.
threads 128, 128
bind "tcp://127.0.0.1:{port}"
rackup "{folder}/config.ru"
persistent_timeout 75
# How long each step of a phased restart may wait to be noticed; the default is 5 s.
worker_check_interval 1
