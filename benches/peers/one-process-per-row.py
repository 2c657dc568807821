"""A program to compare with: a process that takes the lock, appends one row and exits."""

import csv
import os
import sys
import time
import uuid

import redis

server, me = redis.Redis.from_url(os.environ["REDIS_CONN_STR"]), str(uuid.uuid4())
while not server.set("rows.csv", me, nx=True, px=30_000):
    time.sleep(0.001)
with open(os.environ["REDIS_CSV_FILE_NAME"], "a", newline="") as file:
    csv.writer(file).writerow([sys.argv[1]])
    file.flush()
    os.fdatasync(file.fileno())
server.eval("if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end", 1, "rows.csv", me)
