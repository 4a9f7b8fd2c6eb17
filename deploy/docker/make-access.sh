#!/bin/sh
# Make the passwords of Redis' users, once: $1 is the template of the access list, $2 the folder to write to.
#
#   $2/valkey/users.acl       the access list with hashes, for Redis alone
#   $2/USER/redis-url         what the service USER connects with, for it alone
#
# What exists is kept, so that a restart changes no password; the access list is written anew from them.
set -eu
template=$1
folder=$2
host=${VALKEY_HOST:-valkey}
umask 027
mkdir -p "$folder/valkey"
list=$(cat "$template")
for user in gateway tasks preprocess inference subscriber; do
    mkdir -p "$folder/$user"
    file=$folder/$user/redis-url
    if [ ! -s "$file" ]; then
        password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
        printf 'redis://%s:%s@%s:6379/0' "$user" "$password" "$host" > "$file"
    fi
    password=$(sed 's|^[^:]*://[^:]*:||; s|@.*||' "$file")
    hash=$(printf '%s' "$password" | sha256sum | cut -d' ' -f1)
    mark=$(printf '%s' "$user" | tr '[:lower:]' '[:upper:]')_SHA256
    list=$(printf '%s\n' "$list" | sed "s/#$mark/#$hash/")
done
printf '%s\n' "$list" > "$folder/valkey/users.acl"
