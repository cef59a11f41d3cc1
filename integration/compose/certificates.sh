#!/bin/sh
# Makes the certificates of the containers, by the page's own openssl commands where it has them.
#
#   certificates all              the servers' and the client's, unless they are there
#   certificates servers          the servers' and what authorities they have
#   certificates client [SERIAL]  the client's, and puts it where Envoy looks; another SERIAL is another certificate
#   certificates impostor         a certificate for my-nginx of an authority that nobody trusts
set -eu
umask 077
cd /certificates/authority

host=my-nginx.mesh-external.svc.cluster.local

shown() {
  printf '$ %s\n' "$1"
  sh -c "$1" 2>log || {
    cat log >&2
    exit 1
  }
}

# The page's form with a subject alternative name, which is verified here.
server_with_name() { # NAME CA OUT
  cat >"$3.conf" <<EOF
[req]
distinguished_name = req_distinguished_name
req_extensions = v3_req
x509_extensions = v3_req
prompt = no
[req_distinguished_name]
countryName = US
[v3_req]
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth, clientAuth
basicConstraints = critical, CA:FALSE
subjectAltName = critical, @alt_names
[alt_names]
DNS = $1
EOF
  shown "openssl req -out $3.csr -newkey rsa:2048 -nodes -keyout $3.key -subj \"/CN=$1/O=some organization\" -config $3.conf"
  shown "openssl x509 -req -sha256 -days 365 -CA $2.crt -CAkey $2.key -set_serial 0 -in $3.csr -out $3.crt -extfile $3.conf -extensions v3_req"
}

authority() { # ORGANIZATION NAME
  shown "openssl req -x509 -sha256 -nodes -days 365 -newkey rsa:2048 -subj '/O=$1/CN=$2' -keyout $2.key -out $2.crt"
}

# By rename, the key first: a certificate is never beside the key of another.
put() { # FROM TO
  cp "$1" "$2.new"
  mv "$2.new" "$2"
}

servers() {
  authority 'example Inc.' example.com
  server_with_name $host example.com $host
  put $host.key ../my-nginx/tls.key
  put $host.crt ../my-nginx/tls.crt
  put example.com.crt ../my-nginx-ca/example.com.crt
  # The site's authority is one of those that everybody trusts.
  authority 'public authority' public-authority
  server_with_name edition.cnn.com public-authority edition.cnn.com
  put edition.cnn.com.key ../edition/tls.key
  put edition.cnn.com.crt ../edition/tls.crt
  put public-authority.crt ../trust/ca.crt
}

client() { # SERIAL
  shown 'openssl req -out client.example.com.csr -newkey rsa:2048 -nodes -keyout client.example.com.key -subj "/CN=client.example.com/O=client organization"'
  shown "openssl x509 -req -sha256 -days 365 -CA example.com.crt -CAkey example.com.key -set_serial $1 -in client.example.com.csr -out client.example.com.crt"
  credential=../credentials/client-credential
  mkdir -p $credential
  put example.com.crt $credential/ca.crt
  put client.example.com.key $credential/tls.key
  put client.example.com.crt $credential/tls.crt
}

case ${1:-} in
  all) [ -e ../credentials/client-credential/tls.crt ] || { servers && client 1; } ;;
  servers) servers ;;
  client) client "${2:-1}" ;;
  impostor)
    authority 'nobody' impostor
    server_with_name $host impostor impostor-$host
    put impostor-$host.key ../my-nginx/tls.key
    put impostor-$host.crt ../my-nginx/tls.crt
    ;;
  *)
    echo 'usage: certificates all|servers|client [SERIAL]|impostor' >&2
    exit 2
    ;;
esac
