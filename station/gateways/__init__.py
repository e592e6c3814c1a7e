"""Gateways: separate programs that speak only ISP/1 to the station."""
