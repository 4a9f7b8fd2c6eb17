#!/bin/sh
# Start a service. Where compose made passwords for Redis (make-access.sh), the service's own address lies in /run/access.
set -eu
if [ -r /run/access/redis-url ]; then
    MESH_REDIS_URL=$(cat /run/access/redis-url)
    export MESH_REDIS_URL
fi
exec "$@"
