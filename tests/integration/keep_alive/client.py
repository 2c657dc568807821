"""Appends over keep-alive connections until a file appears: client.py STOP_FILE PORT PORT. It retries nothing but a refused connection."""
import http.client, json, os, sys, threading

STOP, PORTS = sys.argv[1], [int(port) for port in sys.argv[2:]]
answers, resets = [], []


def loop(number):
    connection = None
    while not os.path.exists(STOP):
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", PORTS[number % len(PORTS)], timeout=30)
        if connection.sock is None:
            try:
                connection.connect()
            except ConnectionRefusedError:
                connection, number = None, number + 1
                continue
        try:
            connection.request("POST", "/append", json.dumps({"data": "python"}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            answers.append(answer.status)
        except (OSError, http.client.HTTPException) as e:
            resets.append(repr(e))
            connection = None


threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"statuses": {str(status): answers.count(status) for status in set(answers)}, "resets": resets}))
