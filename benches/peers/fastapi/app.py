"""A service to compare with: a short FastAPI program with the lock of redis-py, csv and fdatasync."""

import csv
import os

import redis
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
server = redis.Redis.from_url(os.environ["REDIS_CONN_STR"])
path = os.environ["REDIS_CSV_FILE_NAME"]


class Row(BaseModel):
    data: str


@app.post("/append", status_code=201)
def append(row: Row):
    with server.lock("rows.csv", timeout=10, sleep=0.001):
        with open(path, "a", newline="") as file:
            offset = file.seek(0, os.SEEK_END)
            csv.writer(file).writerow([row.data])
            file.flush()
            os.fdatasync(file.fileno())
    return {"offset": offset}
