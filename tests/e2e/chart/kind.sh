#!/usr/bin/env bash
# The chart in the cluster that kubectl talks to, with an image that its nodes have: installation with the demo,
# `helm test`, an upgrade that keeps password and data, strangers, uninstallation. .github/workflows/chart.yml makes the
# cluster. Usage: kind.sh REPOSITORY:TAG
set -euo pipefail

image=${1:?usage: kind.sh REPOSITORY:TAG}
chart=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)/helm/mallard
namespace=mallard-chart
first=birds-mallard-a

in_namespace() { kubectl --namespace "$namespace" "$@"; }
query() { in_namespace exec "statefulset/$first" --container mallard -- mallard query grpc://127.0.0.1:8815 "$1" --format csv; }
password() { in_namespace get secret birds-mallard -o go-template='{{index .data "password" | base64decode}}'; }
fail() { echo "FAILED: $*" >&2; exit 1; }

explain() {
    echo "== what is there"
    in_namespace get all,persistentvolumeclaims,networkpolicies -o wide || true
    in_namespace get events --sort-by=.lastTimestamp || true
    in_namespace describe pods || true
    in_namespace logs --selector app.kubernetes.io/instance=birds --all-containers --prefix --tail=100 || true
}
trap '[ $? = 0 ] || explain' EXIT

echo "== install, in a namespace that admits only restricted pods, with the demo"
kubectl create namespace "$namespace"
kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted
helm install birds "$chart" --namespace "$namespace" --wait --timeout 10m \
    --set "image.repository=${image%:*},image.tag=${image##*:},image.pullPolicy=Never" \
    --set demo.enabled=true,demo.hook=true,demo.rows=1000000

echo "== test"
helm test birds --namespace "$namespace" --timeout 10m

echo "== upgrade"
query "CREATE TABLE kept AS SELECT 42 AS answer"
before=$(password)
[ "${#before}" = 40 ] || fail "the password has ${#before} characters"
helm upgrade birds "$chart" --namespace "$namespace" --reuse-values --wait --timeout 10m --set config.limits.queries=4
in_namespace rollout status "statefulset/$first" --timeout 5m
[ "$(password)" = "$before" ] || fail "the upgrade changed the password"
query "FROM kept" | grep -qx 42 || fail "the upgrade lost a table"
in_namespace exec "statefulset/$first" --container mallard -- mallard config show | grep -q '^limits.queries = 4 ' \
    || fail "the upgrade did not change the configuration"
helm test birds --namespace "$namespace" --timeout 10m

echo "== a stranger from another namespace"
if kubectl run stranger --namespace default --image "$image" --image-pull-policy Never --restart Never --rm --attach --quiet \
    -- health "grpc://$first.$namespace.svc:8815"; then
    fail "a pod of another namespace reaches the Flight port"
fi

echo "== uninstall"
helm uninstall birds --namespace "$namespace" --wait --timeout 5m
claims=$(in_namespace get persistentvolumeclaims --output name | wc -l)
[ "$claims" = 2 ] || fail "$claims of 2 claims are left"
if in_namespace get secret birds-mallard >/dev/null 2>&1; then fail "the Secret is left"; fi
echo "installed, tested, upgraded, uninstalled"
