"""cellvit"""
