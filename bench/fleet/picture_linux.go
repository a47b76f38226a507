package main

func draw([]figures) []byte { return nil }
