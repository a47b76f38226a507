#!/bin/sh
# Holds packages against what distributions ask of them: no errors but those
# that packaging/ says why are none.
#   lint.sh PACKAGE…
set -eu
config=$(cd "$(dirname "$0")" && pwd)/rpm/rpmlint.toml
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
for package; do
	case $package in
	*.deb) lintian --fail-on error --allow-root "$package" ;;
	*.rpm)
		# rpmlint unpacks names that begin with a slash: root would write over
		# this machine's own files.
		cp "$package" "$config" "$room"
		chmod -R a+rX "$room"
		(cd "$room" && HOME=$room setpriv --reuid=65534 --regid=65534 --clear-groups rpmlint --config "$room/rpmlint.toml" "$(basename "$package")") || {
			echo "lint: $package" >&2
			exit 1
		}
		;;
	esac
done
