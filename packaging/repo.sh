#!/bin/sh
# Makes a signed repository for apt and one for dnf of the packages in DIST,
# in DIST/repo: copy it to any web server.
#   repo.sh DIST KEY
# KEY is what gpg --local-user takes; the keyring is that of whoever runs this.
set -eu
dist=$1 key=$2
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
repo=$dist/repo
rm -rf "$repo"
mkdir -p "$repo/apt/pool" "$repo/dnf"
sign() { gpg --batch --yes --local-user "$key" --armor "$@"; }

# Hosts get this one file by a way they trust.
gpg --batch --armor --export "$key" >"$repo/jitgate.asc"
[ -s "$repo/jitgate.asc" ] || { echo "repo: gpg has no key $key" >&2; exit 1; }

cp "$dist"/*.deb "$repo/apt/pool/"
(
	cd "$repo/apt"
	for arch in amd64 arm64; do
		of=dists/stable/main/binary-$arch
		mkdir -p "$of"
		apt-ftparchive --arch $arch packages pool >"$of/Packages"
		gzip -n -9 -k "$of/Packages"
	done
	apt-ftparchive -o APT::FTPArchive::Release::Origin=jitgate -o APT::FTPArchive::Release::Label=jitgate \
		-o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
		-o APT::FTPArchive::Release::Architectures='amd64 arm64' -o APT::FTPArchive::Release::Components=main \
		release dists/stable >Release
	mv Release dists/stable/
	sign --clearsign --output dists/stable/InRelease dists/stable/Release
	sign --detach-sign --output dists/stable/Release.gpg dists/stable/Release
)

cp "$dist"/*.rpm "$repo/dnf/"
createrepo_c --quiet --revision "$SOURCE_DATE_EPOCH" "$repo/dnf"
sign --detach-sign --output "$repo/dnf/repodata/repomd.xml.asc" "$repo/dnf/repodata/repomd.xml"
cp "$repo/jitgate.asc" "$repo/dnf/"
echo "$repo"
