package web

// livePath is where pages that change by themselves are followed.
const livePath = Prefix + "live"
