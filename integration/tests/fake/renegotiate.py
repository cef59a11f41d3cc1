"""A TLS 1.2 server that shows a second certificate in a second handshake.

renegotiate.py FIRST.crt FIRST.key SECOND.crt SECOND.key prints its port. It shakes hands with the first certificate,
reads a request, shakes hands with the second one, and answers. `openssl s_server` and Python's `ssl` cannot do this, so
it calls OpenSSL's library.
"""

import ctypes
import socket
import sys

SSL_CTRL_SET_SESS_CACHE_MODE = 44
SSL_CTRL_CLEAR_MODE = 78
SSL_CTRL_SET_MAX_PROTO_VERSION = 124
SSL_MODE_AUTO_RETRY = 4
SSL_FILETYPE_PEM = 1
TLS1_2_VERSION = 0x0303

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

ssl = ctypes.CDLL("libssl.so.3")
pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
for name, result, arguments in [
    ("TLS_server_method", pointer, []),
    ("SSL_CTX_new", pointer, [pointer]),
    ("SSL_CTX_ctrl", ctypes.c_long, [pointer, number, ctypes.c_long, pointer]),
    ("SSL_new", pointer, [pointer]),
    ("SSL_free", None, [pointer]),
    ("SSL_set_fd", number, [pointer, number]),
    ("SSL_use_certificate_chain_file", number, [pointer, text]),
    ("SSL_use_PrivateKey_file", number, [pointer, text, number]),
    ("SSL_accept", number, [pointer]),
    ("SSL_read", number, [pointer, pointer, number]),
    ("SSL_renegotiate", number, [pointer]),
    ("SSL_do_handshake", number, [pointer]),
    ("SSL_renegotiate_pending", number, [pointer]),
    ("SSL_write", number, [pointer, text, number]),
]:
    function = getattr(ssl, name)
    function.restype, function.argtypes = result, arguments

context = ssl.SSL_CTX_new(ssl.TLS_server_method())
ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MAX_PROTO_VERSION, TLS1_2_VERSION, None)
ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_SESS_CACHE_MODE, 0, None)
# A read returns behind a handshake, without waiting for more.
ssl.SSL_CTX_ctrl(context, SSL_CTRL_CLEAR_MODE, SSL_MODE_AUTO_RETRY, None)


def show(connection, chain, key):
    good = ssl.SSL_use_certificate_chain_file(connection, chain.encode())
    good &= ssl.SSL_use_PrivateKey_file(connection, key.encode(), SSL_FILETYPE_PEM)
    assert good == 1, f"{chain} is no certificate, or {key} not its key"


def serve(connection):
    room = ctypes.create_string_buffer(65536)
    show(connection, *sys.argv[1:3])
    if ssl.SSL_accept(connection) != 1 or ssl.SSL_read(connection, room, len(room)) <= 0:
        return
    show(connection, *sys.argv[3:5])
    ssl.SSL_renegotiate(connection)
    ssl.SSL_do_handshake(connection)
    # The client's half of the handshake comes while it is read.
    ssl.SSL_read(connection, room, len(room))
    if not ssl.SSL_renegotiate_pending(connection):
        ssl.SSL_write(connection, ANSWER, len(ANSWER))


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    stream, _ = listener.accept()
    with stream:
        connection = ssl.SSL_new(context)
        ssl.SSL_set_fd(connection, stream.fileno())
        serve(connection)
        ssl.SSL_free(connection)
